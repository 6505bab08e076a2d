-- Keeps revoked tasks, for workers that start later.
--
-- KEYS  1 the revoked: a zset, score since when (unix seconds)
-- ARGV  1 seconds for which they are kept, 2 how many are kept, 3 how many bytes of memory they may take; 4… the
--       members to add
-- Reply how many are kept now
--
-- A second call has them revoked since then. What is too old goes first, then the oldest; one call
-- removes as many as it may add, and a thousand more. Memory is only measured if a long member is added, since that
-- reads all of them; short ones, such as the ids that Celery makes, are few bytes in all.
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local keep = tonumber(ARGV[1])
local old = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now - keep), 'LIMIT', 0, 1000)
-- First: a server without memory refuses a script that begins with a write that may need some.
if #old > 0 then redis.call('ZREM', KEYS[1], unpack(old)) else redis.call('ZREM', KEYS[1], ARGV[4]) end
local is_long = false
for i = 4, #ARGV do
  redis.call('ZADD', KEYS[1], string.format('%.6f', now), ARGV[i])
  is_long = is_long or #ARGV[i] > 100
end
local surplus = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[2])
if surplus > 0 then
  redis.call('ZREM', KEYS[1], unpack(redis.call('ZRANGE', KEYS[1], 0, math.min(surplus, 2000) - 1)))
end
local function usage()
  -- A user who may not ask for it keeps them by number only.
  return tonumber(redis.pcall('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', 0)) or 0
end
while is_long and usage() > tonumber(ARGV[3]) do
  redis.call('ZREM', KEYS[1], unpack(redis.call('ZRANGE', KEYS[1], 0, 99)))
end
redis.call('EXPIRE', KEYS[1], math.ceil(keep))
return redis.call('ZCARD', KEYS[1])
