-- Writes one entry, or the note about a paused entry, unless there are too many, and counts the change.
--
-- KEYS  1 the entries or the paused ones: a hash, 2 the number of changes
-- ARGV  1 the name, 2 the text, 3 the maximum number of fields that the hash may have
-- Reply 1, or 0 if there are too many and nothing was done
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('INCR', KEYS[2])
return 1
