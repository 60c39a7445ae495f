-- Prolong the lease, if it is still the caller's.
-- KEYS: lease, note, control, beats.
-- ARGV: token, new value, ttl in ms, the caller, its sign of life ('' = none), for how many ms signs are kept.
-- Returns {} when it is not, else {the note that another beat has left, '' for none; 1 if there is a request}.
-- A SET, not a PEXPIRE: a Redis without memory must refuse it, so that nobody leads who cannot claim.
local current = redis.call('GET', KEYS[1]) or ''
if ARGV[1] == '' or string.sub(current, 1, #ARGV[1] + 1) ~= ARGV[1] .. '|' then return {} end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
local note = redis.pcall('GET', KEYS[2])
if note then redis.call('DEL', KEYS[2]) end
if ARGV[5] ~= '' then sign(KEYS[4], ARGV[4], ARGV[5], ARGV[6]) end
return {type(note) == 'string' and note or '', redis.call('EXISTS', KEYS[3])}
