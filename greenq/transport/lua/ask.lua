-- Registers a requester's list of replies and publishes its request, so that no reply can arrive too early.
--
-- KEYS  1 the bindings of the reply exchange: a set; 2 the binding deadlines: a zset, member an exchange, score the
--       time until which its bindings must be left alone (unix milliseconds)
-- ARGV  1 the requester's binding, 2 the reply exchange, 3 how many milliseconds the bindings are kept,
--       4 the maximum number of requesters that may be bound, 5 the channel of requests, 6 the request
-- Reply the number of subscribers
local time = redis.call('TIME')
local ends = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[3])
-- Requesters that died have left their bindings behind. If there are too many, remove arbitrary ones, which are almost
-- certainly such leftovers. A user who is not allowed to remove bindings can still send the request.
local bound = redis.call('SCARD', KEYS[1])
if bound >= tonumber(ARGV[4]) then redis.pcall('SPOP', KEYS[1], bound - tonumber(ARGV[4]) + 1) end
redis.call('SADD', KEYS[1], ARGV[1])
local known = redis.call('ZSCORE', KEYS[2], ARGV[2])
if not known or tonumber(known) < ends then
  redis.call('ZADD', KEYS[2], string.format('%d', ends), ARGV[2])
end
return redis.call('PUBLISH', ARGV[5], ARGV[6])
