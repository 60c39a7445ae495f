-- Give the lease up, if it is still the caller's, and take back the sign of life.
-- KEYS: lease, beats.  ARGV: token, the caller.
redis.pcall('HDEL', KEYS[2], ARGV[2])
local current = redis.call('GET', KEYS[1]) or ''
if ARGV[1] == '' or string.sub(current, 1, #ARGV[1] + 1) ~= ARGV[1] .. '|' then return 0 end
return redis.call('DEL', KEYS[1])
