-- Write each register unless it has been written, and return what they hold. A register is written once.
-- KEYS: registers.  ARGV: value, time to live in ms.
local held = {}
for i, key in ipairs(KEYS) do
  if not redis.call('SET', key, ARGV[1], 'NX', 'PX', ARGV[2]) then
    local found = redis.pcall('GET', key)
    held[i] = type(found) == 'string' and found or 'unknown'
  else
    held[i] = ARGV[1]
  end
end
return held
