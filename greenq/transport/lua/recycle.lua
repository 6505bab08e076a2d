-- Lets a worker of a group restart, unless too many of the group are restarting.
--
-- KEYS  1 the restarting workers: a zset, member a node name, score the time until which each is counted (unix seconds)
-- ARGV  1 the calling node, 2 how many may restart at once, 3 how many seconds its restart is counted
-- Reply {} if it may restart; otherwise the restarting nodes
--
-- A repeated call of the same node is granted again, and its time starts again.
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local over = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now))
-- Call ZREM first, since a server out of memory refuses a script whose first write may need memory.
redis.call('ZREM', KEYS[1], ARGV[1], unpack(over))
local away = redis.call('ZRANGE', KEYS[1], 0, -1)
if #away >= tonumber(ARGV[2]) then return away end
redis.call('ZADD', KEYS[1], string.format('%.6f', now + tonumber(ARGV[3])), ARGV[1])
redis.call('EXPIRE', KEYS[1], math.ceil(tonumber(ARGV[3])))
return {}
