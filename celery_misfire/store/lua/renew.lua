-- Prolong the lease, if it is still the caller's. KEYS: lease, note.  ARGV: token, new value, ttl in ms.
-- Returns {} when it is not, else {the note that another beat has left, '' for none}.
-- A SET, not a PEXPIRE: a Redis without memory must refuse it, so that nobody leads who cannot claim.
local current = redis.call('GET', KEYS[1]) or ''
if ARGV[1] == '' or string.sub(current, 1, #ARGV[1] + 1) ~= ARGV[1] .. '|' then return {} end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
local note = redis.pcall('GET', KEYS[2])
if note then redis.call('DEL', KEYS[2]) end
return {type(note) == 'string' and note or ''}
