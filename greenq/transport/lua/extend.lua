-- Extends a worker's lease on its behalf while no Python code runs in it. An ended lease stays ended: others recover
-- its messages.
--
-- KEYS  1 the leases: a zset, member a worker incarnation, score when its lease ends (unix seconds)
-- ARGV  1 the worker's member, 2 how many seconds the lease lasts from now on
-- Reply 1 if the lease was held and has been extended, else 0
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not ends or tonumber(ends) < now then return 0 end
-- Call ZREM first, since a server out of memory refuses a script whose first write may need memory.
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], string.format('%.6f', now + tonumber(ARGV[2])), ARGV[1])
return 1
