-- Take the lease if it is free, or if it is still the value that the caller has seen unchanged for too long.
-- KEYS: lease, state, log, mark of a clean stop, beats.
-- ARGV: token, owner, ttl in ms, the lease value to take over ('' = none), the _meta that the caller has read and
-- understood ('' = none), '|' to leave a free lease alone when there is no state ('' = take it all the same),
-- the sign of life of this beat ('' = none), for how many ms signs are kept.
-- Returns {'TAKEN', epoch, previous epoch, new lease value, Redis's clock in ms, the mark of a clean stop},
-- {'HELD', lease value in force, what its holder said of itself}, with '|' for a lease that was left alone,
-- {'META', _meta} when it is another one: nothing is written to a state that the caller may not understand.
local function type_of(key) return redis.call('TYPE', key)['ok'] end
for i, wanted in ipairs({'string', 'hash', 'stream'}) do
  local found = type_of(KEYS[i])
  if found ~= 'none' and found ~= wanted then
    return redis.error_reply('BADTYPE ' .. KEYS[i] .. ' is a ' .. found .. ', expected a ' .. wanted)
  end
end
local meta = redis.call('HGET', KEYS[2], '_meta') or ''
if meta ~= ARGV[5] then return {'META', meta} end
local current = redis.call('GET', KEYS[1]) or (meta == '' and ARGV[6] or '')
if current ~= '' and current ~= ARGV[4] then
  if ARGV[7] ~= '' then sign(KEYS[5], ARGV[2], ARGV[7], ARGV[8]) end
  return {'HELD', current, redis.call('HGET', KEYS[2], '_beat') or ''}
end
local previous = tonumber(redis.call('HGET', KEYS[2], '_epoch')) or 0
if not (previous >= 0 and previous < 2 ^ 53) then previous = 0 end
local time = redis.call('TIME')
-- Redis's clock keeps the epoch growing through a flush; the comparison keeps it growing through a clock step.
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local epoch = math.max(previous + 1, now)
local value = ARGV[1] .. '|' .. string.format('%d', epoch) .. '|0|' .. ARGV[2]
-- The first write is an HSET: a Redis without memory refuses it, and so nothing at all has happened.
redis.call('HSET', KEYS[2], '_epoch', string.format('%d', epoch))
redis.call('SET', KEYS[1], value, 'PX', ARGV[3])
local stop = redis.pcall('GET', KEYS[4])
redis.call('DEL', KEYS[4])
stop = type(stop) == 'string' and stop or ''
if ARGV[7] ~= '' then sign(KEYS[5], ARGV[2], ARGV[7], ARGV[8]) end
return {'TAKEN', string.format('%d', epoch), string.format('%d', previous), value, string.format('%d', now), stop}
