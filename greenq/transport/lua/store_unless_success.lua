-- Stores and announces a state of a redelivered task, unless another run of it has stored a success.
--
-- KEYS  1 the result, which is also the channel
-- ARGV  1 seconds until it expires, 0 for never, 2 the state, encoded
-- Reply 1 if it was stored, 0 if there is a success
--
-- The status is looked for where all but one serializer write it: first. Of a compressed result and one in
-- YAML it cannot be told, and they are overwritten.
local head = redis.call('GETRANGE', KEYS[1], 0, 63)
if string.match(head, 'status%W+(%w+)') == 'SUCCESS' then return 0 end
if ARGV[1] == '0' then
  redis.call('SET', KEYS[1], ARGV[2])
else
  redis.call('SETEX', KEYS[1], ARGV[1], ARGV[2])
end
redis.call('PUBLISH', KEYS[1], ARGV[2])
return 1
