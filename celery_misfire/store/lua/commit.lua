-- Replace records, all or none of them, and log why.
-- KEYS: lease, state, log.  ARGV: token, length of the log, n, then n times (field, old, new), then log lines.
-- '' stands for an absent record. Whole texts are compared and nothing is decoded.
-- Returns {'OK'}, {'FENCED'}, or {'CONFLICT', fields...}. Sent twice, it does its work once: redis-py repeats
-- a script whose answer it did not get.
local function expect(key, wanted)
  local found = redis.call('TYPE', key)['ok']
  if found ~= 'none' and found ~= wanted then
    return redis.error_reply('BADTYPE ' .. key .. ' is a ' .. found .. ', expected a ' .. wanted)
  end
end
local wrong = expect(KEYS[1], 'string') or expect(KEYS[2], 'hash') or expect(KEYS[3], 'stream')
if wrong then return wrong end
local lease = redis.call('GET', KEYS[1]) or ''
if ARGV[1] == '' or string.sub(lease, 1, #ARGV[1] + 1) ~= ARGV[1] .. '|' then return {'FENCED'} end

local n = tonumber(ARGV[3])
local writes, removals, conflicts = {}, {}, {'CONFLICT'}
for i = 4, 3 + 3 * n, 3 do
  local field, old, new = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local current = redis.call('HGET', KEYS[2], field) or ''
  if current ~= new then
    if current ~= old then
      table.insert(conflicts, field)
    elseif new == '' then
      table.insert(removals, field)
    else
      table.insert(writes, {field, new})
    end
  end
end
if #conflicts > 1 then return conflicts end
if n > 0 and #writes + #removals == 0 then return {'OK'} end
for _, write in ipairs(writes) do redis.call('HSET', KEYS[2], write[1], write[2]) end
for _, field in ipairs(removals) do redis.call('HDEL', KEYS[2], field) end
if ARGV[2] ~= '0' then
  for i = 4 + 3 * n, #ARGV do
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[2], '*', 'd', ARGV[i])
  end
end
return {'OK'}
