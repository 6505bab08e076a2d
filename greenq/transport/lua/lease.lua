-- Renews one worker's lease and tells what the server's clock says of others: whose lease has ended, and
-- when the next parked ETA is due.
--
-- KEYS  1 the leases: a zset, member a worker incarnation, score when its lease ends (unix seconds);
--       2… the parked ETAs: zsets, score when a message is due (unix seconds)
-- ARGV  1 this worker's member, 2 seconds for which the lease holds from now on
-- Reply {1 if the lease was still held; 0 if it had ended meanwhile, or there was none,
--        the server's time, when the next parked ETA is due or an empty text, expired members …}
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
-- ZREM first: a server without memory refuses a script that begins with a write that may need some.
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], string.format('%.6f', now + tonumber(ARGV[2])), ARGV[1])
local due
for i = 2, #KEYS do
  local first = redis.call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')
  if first[2] and (not due or tonumber(first[2]) < due) then due = tonumber(first[2]) end
end
local reply = {
  (ends and tonumber(ends) >= now) and 1 or 0,
  string.format('%.6f', now),
  due and string.format('%.6f', due) or '',
}
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.6f', now))) do
  reply[#reply + 1] = member
end
return reply
