-- Makes one beat the leader for a while, so that other beats do not have to send anything or check what is due.
-- For the beat inside a worker, lease.lua does the same.
--
-- KEYS  1 the leader: a string with an expiry, 2 the number of changes
-- ARGV  1 the caller, 2 milliseconds within which the leader must call again
-- Reply {the server's time in microseconds, 1 if the caller leads, the number of changes, the leader}
--
-- Leading only saves work: the claim alone guarantees that each due time is sent once.
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000000 + tonumber(time[2]))
local leader = redis.call('GET', KEYS[1])
if not leader or leader == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  leader = ARGV[1]
end
return {now, leader == ARGV[1] and 1 or 0, redis.call('GET', KEYS[2]) or '0', leader}
