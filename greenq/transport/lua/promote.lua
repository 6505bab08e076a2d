-- Moves parked messages whose ETA has come, by the server's clock, back to their queue, to be taken next.
--
-- KEYS  1 the parked ETAs of one queue: a zset, score when the message is due (unix seconds), member
--       <number of its list>|<message>; 2… the lists of the queue
-- ARGV  1 the maximum number of messages to move
-- Reply how many were moved
local time = redis.call('TIME')
local now = string.format('%.6f', tonumber(time[1]) + tonumber(time[2]) / 1000000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
-- The message that is pushed last is taken first, so push the one that was due latest first.
for i = #due, 1, -1 do
  local bar = string.find(due[i], '|', 1, true)
  redis.call('RPUSH', KEYS[1 + tonumber(string.sub(due[i], 1, bar - 1))], string.sub(due[i], bar + 1))
  redis.call('ZREM', KEYS[1], due[i])
end
return #due
