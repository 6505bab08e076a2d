-- Sends messages of a paused workflow back to their queues, unless it is paused again.
--
-- KEYS  1 the workflow, 2 the messages: a list, whose items are the length of a queue's key, a colon, the key, and the
--       message
-- ARGV  1 the maximum number of messages to move
-- Reply how many are left; or an error if a queue's key has the wrong type, in which case its messages stay
if redis.call('HGET', KEYS[1], 'stop') == 'paused' then return 0 end
for _ = 1, tonumber(ARGV[1]) do
  local item = redis.call('LINDEX', KEYS[2], 0)
  if not item then break end
  local size, from = string.match(item, '^(%d+):()')
  local pushed = redis.pcall('LPUSH', string.sub(item, from, from + size - 1), string.sub(item, from + size))
  if type(pushed) == 'table' then return pushed end
  redis.call('LPOP', KEYS[2])
end
return redis.call('LLEN', KEYS[2])
