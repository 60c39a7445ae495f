-- Decide about one message of a run that a worker is about to start, and write the run's register, unless
-- something has been written there before.
-- KEYS: register, mark of the entry's last late run, log.
-- ARGV: value for the register, its time to live in ms, when the message was sent ('' = it is not merged),
-- what becomes the mark if the run starts ('' = it starts in time), length of the log, a line for the log
-- ('' = none), another for a run that is merged.
-- Returns the value in the register, and 1 if it was written just now.
local held = redis.pcall('GET', KEYS[1])
if held then return {type(held) == 'string' and held or 'unknown', 0} end
local value, line = ARGV[1], ARGV[6]
if ARGV[3] ~= '' then
  -- When the last late run started, and its task id.
  local mark = redis.pcall('GET', KEYS[2])
  local started, id = string.match(type(mark) == 'string' and mark or '', '^(%d+)|(.*)$')
  if started and tonumber(ARGV[3]) < tonumber(started) then
    value, line = 'merged:' .. id, ARGV[7]
  end
end
redis.call('SET', KEYS[1], value, 'PX', ARGV[2])
if value == ARGV[1] and ARGV[4] ~= '' then redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[2]) end
if line ~= '' and ARGV[5] ~= '0' then redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[5], '*', 'd', line) end
return {value, 1}
