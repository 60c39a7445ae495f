-- Look at everything but the records; nothing is written. What may not be read is as if it were not there.
-- KEYS: lease, state, guard, beats, control.
-- Returns {milliseconds UTC, lease, milliseconds until it ends (-1: not known), 1 if guarded, 1 if there is a
-- state, hold, {beat, sign, ...}, {id, request, ...}}.
local function text(answer) return type(answer) == 'string' and answer or '' end
local function list(answer) return type(answer) == 'table' and not answer['err'] and answer or {} end
local function number(answer) return type(answer) == 'number' and answer or -1 end
local time = redis.call('TIME')
return {
  string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000)),
  redis.call('GET', KEYS[1]) or '',
  number(redis.pcall('PTTL', KEYS[1])),
  redis.call('EXISTS', KEYS[3]),
  redis.call('HGET', KEYS[2], '_meta') and 1 or 0,
  text(redis.pcall('HGET', KEYS[2], '_hold')),
  list(redis.pcall('HGETALL', KEYS[4])),
  list(redis.pcall('HGETALL', KEYS[5])),
}
