-- Give the lease up, if it is still the caller's, and mark that as a clean stop, if it is one. The sign of life of
-- the caller is taken back.
-- KEYS: lease, mark, beats.
-- ARGV: token, since when the caller has sent in time ('' = no mark), time to live of the mark, the caller.
redis.pcall('HDEL', KEYS[3], ARGV[4])
local current = redis.call('GET', KEYS[1]) or ''
if ARGV[1] == '' or string.sub(current, 1, #ARGV[1] + 1) ~= ARGV[1] .. '|' then return 0 end
-- First of all: a Redis without memory refuses the mark, not this.
redis.call('DEL', KEYS[1])
local epoch = string.match(string.sub(current, #ARGV[1] + 2), '^(%d+)|')
if ARGV[2] ~= '' and epoch then
  local time = redis.call('TIME')
  local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.pcall('SET', KEYS[2], epoch .. '|' .. now .. '|' .. ARGV[2], 'PX', ARGV[3])
end
return 1
