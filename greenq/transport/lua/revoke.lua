-- Keeps revoked tasks, for workers that start later.
--
-- KEYS  1 the revoked: a zset, score since when (unix seconds)
-- ARGV  1 seconds for which they are kept, 2 how many are kept; 3… the members to add
-- Reply how many are kept now
--
-- A second call has them revoked since then. What is too old goes first, then the oldest; one call
-- removes as many as it may add, and a thousand more.
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local keep = tonumber(ARGV[1])
local old = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now - keep), 'LIMIT', 0, 1000)
-- First: a server without memory refuses a script that begins with a write that may need some.
if #old > 0 then redis.call('ZREM', KEYS[1], unpack(old)) else redis.call('ZREM', KEYS[1], ARGV[3]) end
for i = 3, #ARGV do redis.call('ZADD', KEYS[1], string.format('%.6f', now), ARGV[i]) end
local surplus = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[2])
if surplus > 0 then
  redis.call('ZREM', KEYS[1], unpack(redis.call('ZRANGE', KEYS[1], 0, math.min(surplus, 2000) - 1)))
end
redis.call('EXPIRE', KEYS[1], math.ceil(keep))
return redis.call('ZCARD', KEYS[1])
