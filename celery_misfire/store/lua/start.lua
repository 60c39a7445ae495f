-- Decide about one message of a run that a worker is about to start, and write the run's register, unless
-- something has been written there before.
-- KEYS: register, mark of the entry's last late run, log, the counts of this hour.
-- ARGV: value for the register, its time to live in ms, when the message was sent ('' = it is not merged),
-- what becomes the mark if the run starts ('' = it starts in time), length of the log, a line for the log
-- ('' = none), another for a run that is merged, the time to live of the counts in ms, the field of the counts
-- that goes with the first line ('' = none), and with the second.
-- Returns the value in the register, and 0 if it was there before, else 1 or, for a run with a line, how many of
-- these there were in this hour.
local held = redis.pcall('GET', KEYS[1])
if held then return {type(held) == 'string' and held or 'unknown', 0} end
local value, line, field = ARGV[1], ARGV[6], ARGV[9]
if ARGV[3] ~= '' then
  -- When the last late run started, and its task id.
  local mark = redis.pcall('GET', KEYS[2])
  local started, id = string.match(type(mark) == 'string' and mark or '', '^(%d+)|(.*)$')
  if started and tonumber(ARGV[3]) < tonumber(started) then
    value, line, field = 'merged:' .. id, ARGV[7], ARGV[10]
  end
end
redis.call('SET', KEYS[1], value, 'PX', ARGV[2])
if value == ARGV[1] and ARGV[4] ~= '' then redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[2]) end
if line == '' then return {value, 1} end
-- What is wrong with the counts must not stop the run, and counts that cannot end are not kept.
local nth = 1
local known = redis.pcall('PEXPIRE', KEYS[4], ARGV[8])
if type(known) == 'number' then
  local counted = redis.pcall('HINCRBY', KEYS[4], 'late:', 1)
  if type(counted) == 'number' then nth = counted end
  if field ~= '' then redis.pcall('HINCRBY', KEYS[4], field, 1) end
  if known == 0 then redis.pcall('PEXPIRE', KEYS[4], ARGV[8]) end
end
-- A backlog of late runs must not push everything else out of the log: it gets a tenth of it in an hour.
if ARGV[5] ~= '0' and nth <= math.max(10, ARGV[5] / 10) then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[5], '*', 'd', line)
end
return {value, nth}
