-- Ends the lease of a worker whose process has died, so that others recover its messages immediately.
--
-- KEYS  1 the leases: a zset, member a worker incarnation, score when its lease ends (unix seconds)
-- ARGV  1 the worker's member
-- Reply 1 if the lease was held and has been ended, else 0: a lease that has ended keeps its score, which recovery uses
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not ends or tonumber(ends) < now then return 0 end
-- Call ZREM first, since a server out of memory refuses a script whose first write may need memory.
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], 0, ARGV[1])
return 1
