-- Prolong the lease, if it is still the caller's.
-- KEYS: lease, note, control, beats.
-- ARGV: token, new value, ttl in ms, how many renewals the lease is known to have had, the caller, its sign of life
-- ('' = none), for how many ms signs are kept.
-- Returns {} when it is another one's, or has had fewer renewals, else {the note that another beat has left, '' for
-- none; 1 if there is a request}.
-- A SET, not a PEXPIRE: a Redis without memory must refuse it, so that nobody leads who cannot claim.
local current = redis.call('GET', KEYS[1]) or ''
if ARGV[1] == '' or string.sub(current, 1, #ARGV[1] + 1) ~= ARGV[1] .. '|' then return {} end
local renewals = string.match(string.sub(current, #ARGV[1] + 2), '^%d+|(%d+)|')
if (tonumber(renewals) or 0) < tonumber(ARGV[4]) then return {} end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
local note = redis.pcall('GET', KEYS[2])
if note then redis.call('DEL', KEYS[2]) end
if ARGV[6] ~= '' then sign(KEYS[4], ARGV[5], ARGV[6], ARGV[7]) end
return {type(note) == 'string' and note or '', redis.call('EXISTS', KEYS[3])}
