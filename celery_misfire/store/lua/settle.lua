-- Write each register unless it has been written, and return what they hold. A register is written once.
-- KEYS: lease, then registers.  ARGV: value, time to live in ms, and for a beat the token of its lease.
-- Returns what the registers hold, or {} when the lease is another one's: nothing has been written then.
if ARGV[3] then
  local lease = redis.call('GET', KEYS[1]) or ''
  if ARGV[3] == '' or string.sub(lease, 1, #ARGV[3] + 1) ~= ARGV[3] .. '|' then return {} end
end
local held = {}
for i = 2, #KEYS do
  if not redis.call('SET', KEYS[i], ARGV[1], 'NX', 'PX', ARGV[2]) then
    local found = redis.pcall('GET', KEYS[i])
    held[i - 1] = type(found) == 'string' and found or 'unknown'
  else
    held[i - 1] = ARGV[1]
  end
end
return held
