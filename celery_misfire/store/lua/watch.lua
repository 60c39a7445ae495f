-- Say that a worker with the guard is there; become the one that watches, or stay it; write its note.
-- KEYS: token of the watcher, its notes, sign of life of the guard, lease.
-- ARGV: token, its time to live in ms, that of the sign of life (0 = no guard), and the note, if it is replaced.
-- Returns {} when another one watches (nothing is noted then), else {1 if a beat leads, the note}.
if ARGV[3] ~= '0' then redis.call('SET', KEYS[3], '1', 'PX', ARGV[3]) end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return {} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if ARGV[4] then redis.call('HSET', KEYS[2], 'alarm', ARGV[4]) end
return {redis.call('EXISTS', KEYS[4]), redis.call('HGET', KEYS[2], 'alarm') or ''}
