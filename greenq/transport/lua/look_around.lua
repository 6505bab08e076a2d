-- Returns who holds a lease, and keeps the highest logical clock that any worker has reported.
--
-- KEYS  1 the leases: a zset, member a worker incarnation, score when its lease ends (unix seconds);
--       2 the clock: a zset
-- ARGV  1 the caller's clock, 2 the clock's only member, 3 how many seconds it is kept
-- Reply {the server's time in seconds, the members of the leases, each followed by its score, the highest clock}
local time = redis.call('TIME')
local highest = '0'
-- A server that is out of memory refuses to write the clock; this must not hide who is alive.
if type(redis.pcall('ZADD', KEYS[2], 'GT', ARGV[1], ARGV[2])) == 'number' then
  redis.call('EXPIRE', KEYS[2], ARGV[3])
  highest = redis.call('ZSCORE', KEYS[2], ARGV[2])
end
return {time[1], redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'), highest}
