-- Prolong the lease, if it is still the caller's. KEYS: lease.  ARGV: token, new value, ttl in ms.
-- A SET, not a PEXPIRE: a Redis without memory must refuse it, so that nobody leads who cannot claim.
local current = redis.call('GET', KEYS[1]) or ''
if string.sub(current, 1, #ARGV[1] + 1) ~= ARGV[1] .. '|' then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
