-- Ends an owner. The owner itself does this in two calls when it stops; a worker that has recovered it needs one call.
--
-- KEYS  1 the leases, 2 the owner: a hash; optional: 3 the latest deaths: a list
-- ARGV  1 the owner's member of the leases, 2 'close': the owner takes no more messages; 'leave': also remove its
--       lease; or the score that its ended lease had when it was claimed: remove the lease if it still has that
--       score, 3 how many seconds pass until the owner is forgotten; optional: 4 the entry about its death,
--       5 how many deaths to keep, 6 for how many seconds
-- Reply 1 if it was done, 0 if the lease was renewed or removed in the meantime
--
-- The owner stays known for a while, so that its later writes are recognised as not held.
if ARGV[2] == 'close' then
  -- Call HDEL first, since a server out of memory refuses a script whose first write may need memory.
  redis.call('HDEL', KEYS[2], 'closed')
  redis.call('HSET', KEYS[2], 'closed', 1)
  redis.call('EXPIRE', KEYS[2], ARGV[3])
  return 1
end
if ARGV[2] ~= 'leave' and redis.call('ZSCORE', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('EXPIRE', KEYS[2], ARGV[3])
local removed = redis.call('ZREM', KEYS[1], ARGV[1])
if ARGV[4] then
  -- The entry is only informative: if it cannot be written, the lease must still be removed.
  redis.pcall('LPUSH', KEYS[3], ARGV[4])
  redis.pcall('LTRIM', KEYS[3], 0, ARGV[5] - 1)
  redis.pcall('EXPIRE', KEYS[3], ARGV[6])
end
return removed
