-- Ends an owner: in two calls by itself, when it stops, and in one by whoever has recovered it.
--
-- KEYS  1 the leases, 2 the owner: a hash
-- ARGV  1 the owner's member of the leases, 2 'close': it takes nothing any more; 'leave': its lease is removed, too;
--       or the score that its ended lease had when it was claimed: the lease is removed if it still has that
--       score, 3 seconds until the owner is forgotten
-- Reply 1 if it was done, 0 if the lease was renewed or removed meanwhile
--
-- The owner stays known for a while, so that what it still writes is seen to be not held.
if ARGV[2] == 'close' then
  -- First, since a server without memory refuses a script that begins with a write that may need some.
  redis.call('HDEL', KEYS[2], 'closed')
  redis.call('HSET', KEYS[2], 'closed', 1)
  redis.call('EXPIRE', KEYS[2], ARGV[3])
  return 1
end
if ARGV[2] ~= 'leave' and redis.call('ZSCORE', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('EXPIRE', KEYS[2], ARGV[3])
return redis.call('ZREM', KEYS[1], ARGV[1])
