-- Binds a queue that expires, and removes the bindings of expired queues, as Celery's workers do.
--
-- KEYS  1 the bindings of an exchange: a set; 2 the binding deadlines: a zset, member an exchange, score the time until
--       which its bindings must be left alone (unix milliseconds)
-- ARGV  1 the binding, 2 the exchange, 3 how many milliseconds the bindings are kept,
--       4, 5 the prefixes of the keys with the bindings, and with the permanent bindings, of an exchange,
--       6 the maximum number of exchanges whose bindings are removed
-- Reply the number of exchanges whose deadline had passed
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local ends = now + tonumber(ARGV[3])
redis.call('SADD', KEYS[1], ARGV[1])
local known = redis.call('ZSCORE', KEYS[2], ARGV[2])
if not known or tonumber(known) < ends then
  redis.call('ZADD', KEYS[2], string.format('%d', ends), ARGV[2])
end
local overdue = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, tonumber(ARGV[6]))
for _, exchange in ipairs(overdue) do
  -- A single permanent queue is enough to keep the exchange. A user who is not allowed to remove bindings
  -- leaves this to others.
  local stays = redis.pcall('EXISTS', ARGV[5] .. exchange)
  if stays == 0 then stays = redis.pcall('DEL', ARGV[4] .. exchange) end
  if type(stays) == 'number' then redis.call('ZREM', KEYS[2], exchange) end
end
return #overdue
