-- Keeps a message that is to be sent when a workflow ends, or sends it now if the workflow has already ended.
--
-- KEYS  1 the workflow, 2 its calls: a list
-- ARGV  1 when to send it: 's' after success, 'f' after a failure, 'e' in any case; 2 the length of the queue's key, a
--       colon, the key, and the message; 3 the maximum number of calls
-- Reply 1, or an error:
--       UNKNOWN the index has no such workflow
--       FULL    the workflow has too many calls
if redis.call('HEXISTS', KEYS[1], 'since') == 0 then
  return redis.error_reply('UNKNOWN the index has no such workflow')
end
local seen = redis.call('HMGET', KEYS[1], 'over', 'n.f', 'n.v')
if seen[1] then
  local how = (tonumber(seen[2] or 0) or 0) + (tonumber(seen[3] or 0) or 0) == 0 and 's' or 'f'
  if ARGV[1] ~= 'e' and ARGV[1] ~= how then return 1 end
  local size, from = string.match(ARGV[2], '^(%d+):()')
  return redis.call('LPUSH', string.sub(ARGV[2], from, from + size - 1), string.sub(ARGV[2], from + size))
end
if redis.call('LLEN', KEYS[2]) >= tonumber(ARGV[3]) then return redis.error_reply('FULL it has too many calls') end
redis.call('RPUSH', KEYS[2], ARGV[1] .. ARGV[2])
redis.call('EXPIRE', KEYS[2], math.max(1, redis.call('TTL', KEYS[1])))
return 1
