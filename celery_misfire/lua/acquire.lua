-- Take the lease if it is free, or if it is still the value that the caller has seen unchanged for too long.
-- KEYS: lease, state.  ARGV: token, owner, ttl in ms, the lease value to take over ('' = none).
-- Returns {1, epoch, previous epoch, _meta, new lease value}, or {0, lease value in force}.
local function type_of(key) return redis.call('TYPE', key)['ok'] end
for i, wanted in ipairs({'string', 'hash'}) do
  local found = type_of(KEYS[i])
  if found ~= 'none' and found ~= wanted then
    return redis.error_reply('BADTYPE ' .. KEYS[i] .. ' is a ' .. found .. ', expected a ' .. wanted)
  end
end
local current = redis.call('GET', KEYS[1]) or ''
if current ~= '' and current ~= ARGV[4] then return {0, current} end
local previous = tonumber(redis.call('HGET', KEYS[2], '_epoch')) or 0
local time = redis.call('TIME')
-- Redis's clock keeps the epoch growing through a flush; the comparison keeps it growing through a clock step.
local epoch = math.max(previous + 1, time[1] * 1000 + math.floor(time[2] / 1000))
local value = ARGV[1] .. '|' .. string.format('%d', epoch) .. '|0|' .. ARGV[2]
-- The first write is an HSET: a Redis without memory refuses it, and so nothing at all has happened.
redis.call('HSET', KEYS[2], '_epoch', string.format('%d', epoch))
redis.call('SET', KEYS[1], value, 'PX', ARGV[3])
return {1, string.format('%d', epoch), string.format('%d', previous), redis.call('HGET', KEYS[2], '_meta') or '', value}
