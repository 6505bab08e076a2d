-- Stores revoked tasks for workers that start later.
--
-- KEYS  1 the revoked tasks: a zset, score time of the revocation (unix seconds)
-- ARGV  1 how many seconds they are kept, 2 their maximum number, 3 how many bytes of memory they may take; 4… the
--       members to add
-- Reply how many are stored now
--
-- A repeated call renews the time of the revocation. Expired members are removed first, then the oldest.
-- One call removes at most a thousand more members than it may add. Memory is measured only if a long member is added,
-- since measuring reads all members; short ones, such as the ids that Celery makes, take little memory in total.
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local keep = tonumber(ARGV[1])
local old = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now - keep), 'LIMIT', 0, 1000)
-- Call ZREM first, since a server out of memory refuses a script whose first write may need memory.
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
  -- If the user is not allowed to measure memory, only the number of members is limited.
  return tonumber(redis.pcall('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', 0)) or 0
end
while is_long and usage() > tonumber(ARGV[3]) do
  redis.call('ZREM', KEYS[1], unpack(redis.call('ZRANGE', KEYS[1], 0, 99)))
end
redis.call('EXPIRE', KEYS[1], math.ceil(keep))
return redis.call('ZCARD', KEYS[1])
