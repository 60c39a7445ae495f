-- Replace records and put messages into their queues, all or nothing, and log why.
-- KEYS: lease, state, log, then q queues, then the counts of this hour, if there are any counts, then the registers of
-- runs whose intents are taken out as they were sent.
-- ARGV: token, 'n q o c h t' (h: length of the log, t: the latest moment for it all in ms, 0 for none), then n times (field, old,
-- new), q times (number of messages, messages...), o times (command, key or channel, value) for PEXPIRE and PUBLISH, the time to
-- live of the counts in ms if there are any, c times (field, count), then log lines.
-- '' stands for an absent record. Whole texts are compared and nothing is decoded.
-- Returns {'OK', q times the length of the queue (-1 = not known), number of a command, its error, ...}, {'FENCED'}, {'LATE'},
-- {'CONFLICT', fields...}, {'CLOSED', numbers of registers...}, or {'REFUSED', number of a queue, command, its error, ...}.
-- Sent twice, it does its work once: redis-py repeats a script whose answer it did not get.
local function expect(key, wanted)
  local found = redis.call('TYPE', key)['ok']
  if found ~= 'none' and found ~= wanted then
    return redis.error_reply('BADTYPE ' .. key .. ' is a ' .. found .. ', expected a ' .. wanted)
  end
end
local wrong = expect(KEYS[1], 'string') or expect(KEYS[2], 'hash') or expect(KEYS[3], 'stream')
if wrong then return wrong end
local lease = redis.call('GET', KEYS[1]) or ''
if ARGV[1] == '' or string.sub(lease, 1, #ARGV[1] + 1) ~= ARGV[1] .. '|' then return {'FENCED'} end

local numbers = {}
for number in string.gmatch(ARGV[2], '%d+') do table.insert(numbers, tonumber(number)) end
local n, q, o, c, history, latest = unpack(numbers)
if latest > 0 then
  -- A Redis that was frozen reads what came meanwhile, although it is too late for that.
  local now = redis.pcall('TIME')
  if not now['err'] and now[1] * 1000 + now[2] / 1000 > latest then return {'LATE'} end
end

local writes, removals, conflicts, done = {}, {}, {'CONFLICT'}, {'CONFLICT'}
local at = 3
for i = 1, n do
  local field, old, new = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local current = redis.call('HGET', KEYS[2], field) or ''
  if current == new then
    if old ~= new then table.insert(done, field) end
  elseif current ~= old then
    table.insert(conflicts, field)
  elseif new == '' then
    table.insert(removals, field)
  else
    table.insert(writes, {field, new})
  end
  at = at + 3
end
if #conflicts > 1 then return conflicts end

local function error_of(answer) return type(answer) == 'table' and answer['err'] or nil end
local result = {'OK'}
if n > 0 and #writes + #removals == 0 then
  for i = 1, q do
    local length = redis.pcall('LLEN', KEYS[3 + i])
    table.insert(result, error_of(length) and -1 or length)
  end
  return result
end
-- A message goes with its own record. Some of these records have been replaced before, with or without theirs.
if q + o > 0 and #done > 1 then return done end

-- A worker has left these runs to beat: their intents have to stay, or nobody would record them.
local closed, before = {'CLOSED'}, 3 + q + (c > 0 and 1 or 0)
for i = before + 1, #KEYS do
  local held = redis.pcall('GET', KEYS[i])
  if type(held) == 'string' and string.find(held, '^missed:[^:]*$') then table.insert(closed, i - before) end
end
if #closed > 1 then return closed end

if q > 0 then
  -- Redis undoes nothing when a script fails, so all that may be refused is tried before the first message is
  -- pushed. These two change nothing. The first must come first: Redis looks at its memory no more when a script
  -- has sent any command that writes.
  redis.call('HSET', KEYS[2], '_epoch', redis.call('HGET', KEYS[2], '_epoch') or '0')
  if #removals > 0 then redis.call('HDEL', KEYS[2], '') end
  local refused = {'REFUSED'}
  local function refuse(i, command, err)
    for _, item in ipairs({i, command, err}) do table.insert(refused, item) end
  end
  for i = 1, q do
    -- Without the right to pop, nothing could be undone. Redis 6.2 does not look at the type of the key here.
    local key = KEYS[3 + i]
    local err, kind = error_of(redis.pcall('LPOP', key, 0)), redis.pcall('TYPE', key)['ok']
    if not err and kind and kind ~= 'list' and kind ~= 'none' then err = 'WRONGTYPE The key holds a ' .. kind end
    if err then refuse(i, 'LPOP', err) end
  end
  if #refused > 1 then return refused end
  local pushed = {}
  for i = 1, q do
    local last = at + tonumber(ARGV[at])
    pushed[i] = 0
    for j = at + 1, last do
      local length = redis.pcall('LPUSH', KEYS[3 + i], ARGV[j])
      local err = error_of(length)
      if err then
        refuse(i, 'LPUSH', err)
        break
      end
      pushed[i], result[1 + i] = pushed[i] + 1, length
    end
    at = last + 1
  end
  if #refused > 1 then
    for i = 1, q do
      if pushed[i] > 0 then redis.call('LPOP', KEYS[3 + i], pushed[i]) end
    end
    return refused
  end
end

for _, write in ipairs(writes) do redis.call('HSET', KEYS[2], write[1], write[2]) end
for _, field in ipairs(removals) do redis.call('HDEL', KEYS[2], field) end
for i = 1, o do
  local err = error_of(redis.pcall(ARGV[at], ARGV[at + 1], ARGV[at + 2]))
  if err then
    table.insert(result, i)
    table.insert(result, err)
  end
  at = at + 3
end
-- What is wrong with the counts must not undo a commit, and counts that cannot end are not kept.
if c > 0 then
  local key, ttl = KEYS[4 + q], ARGV[at]
  local known = redis.pcall('PEXPIRE', key, ttl)
  if not error_of(known) then
    for i = at + 1, at + 2 * c, 2 do redis.pcall('HINCRBY', key, ARGV[i], ARGV[i + 1]) end
    if known == 0 then redis.pcall('PEXPIRE', key, ttl) end
  end
  at = at + 1 + 2 * c
end
if history > 0 then
  for i = at, #ARGV do
    redis.call('XADD', KEYS[3], 'MAXLEN', '~', history, '*', 'd', ARGV[i])
  end
end
return result
