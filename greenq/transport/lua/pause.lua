-- Pauses a queue, unless too many are paused. The number is limited because each lease renewal returns all of them.
--
-- KEYS  1 the paused queues: a hash, whose fields are their names
-- ARGV  1 the queue, 2 who paused it and when, for display, 3 the maximum number of queues that may be paused
-- Reply 1, or 0 if too many are paused and nothing was done
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
