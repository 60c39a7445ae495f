-- Move a state with its log to keys with another prefix, all of it or nothing, and leave a mark in its place.
-- KEYS: lease, state, log where they are; state, log where they go.
-- ARGV: the _meta that the caller has read, the _meta that is left there, for how long it is left, in ms.
-- Returns 1, or 0 when nothing was done: a beat leads there, the state is another one, or there is one here.
if redis.call('EXISTS', KEYS[1]) == 1 or redis.call('HEXISTS', KEYS[4], '_meta') == 1 then return 0 end
if redis.call('HGET', KEYS[2], '_meta') ~= ARGV[1] then return 0 end
-- Lines that workers have written here already come after those that are moved.
local newer = redis.call('XRANGE', KEYS[5], '-', '+')
-- The first write is an HSET: a Redis without memory refuses it, and so nothing at all has happened.
redis.call('HSET', KEYS[2], '_meta', ARGV[1])
redis.call('RENAME', KEYS[2], KEYS[4])
if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('RENAME', KEYS[3], KEYS[5])
  for _, line in ipairs(newer) do redis.call('XADD', KEYS[5], '*', unpack(line[2])) end
end
redis.call('HSET', KEYS[2], '_meta', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
