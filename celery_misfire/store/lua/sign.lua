-- Begins acquire.lua and renew.lua: write the sign of life of a beat, and drop those that are too old.
-- What goes wrong with it must not cost the lease. It comes after what must be refused by a Redis without memory,
-- which looks at its memory no more when a script has written anything. The moment is Redis's own.
local function sign(key, owner, text, keep)
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.pcall('HSET', key, owner, string.format('%d', now) .. '|' .. text)
  redis.pcall('PEXPIRE', key, keep)
  local all = redis.pcall('HGETALL', key)
  for i = 1, #all, 2 do
    local at = tonumber(string.match(all[i + 1], '^(%d+)|'))
    if not at or now - at > tonumber(keep) then redis.pcall('HDEL', key, all[i]) end
  end
end
