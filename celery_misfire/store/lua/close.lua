-- Write the register of a run that an intent stands for, unless it has been written before.
-- KEYS: register, state.  ARGV: value, time to live in ms, field and text of the record that has the intent.
-- Returns what the register holds, or '' when the record is another one by now: nothing has been written then.
local held = redis.pcall('GET', KEYS[1])
if held then return type(held) == 'string' and held or 'unknown' end
if redis.call('HGET', KEYS[2], ARGV[3]) ~= ARGV[4] then return '' end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
