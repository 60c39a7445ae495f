-- Say that a worker with the guard is there; become the one that watches, or stay it; write its notes.
-- KEYS: token of the watcher, its notes, sign of life of the guard, lease.
-- ARGV: token, its time to live in ms, that of the sign of life (0 = no guard), then notes (field, value).
-- Returns {} when another one watches (nothing is noted then), else {1 if a beat leads, 'seen', 'alarm'}.
if ARGV[3] ~= '0' then redis.call('SET', KEYS[3], '1', 'PX', ARGV[3]) end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return {} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
local notes = redis.call('HMGET', KEYS[2], 'seen', 'alarm')
return {redis.call('EXISTS', KEYS[4]), notes[1] or '', notes[2] or ''}
