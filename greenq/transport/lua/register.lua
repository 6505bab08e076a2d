-- Makes an owner known to the server, with the messages it holds. A new owner holds none; after the server has lost its
-- data, these are the messages that would otherwise be lost.
--
-- KEYS  1 unacked, 2 unacked_index, 3 the owner: a hash, 4 its begun tags: a set, 5 the leases
-- ARGV  1 the owner's member of the leases, 2 the number of its first unused tag, or '' if another portion follows,
--       3 the number of its last take, 4 how many seconds pass until a silent owner is forgotten, 5 the challenge
--       that the last renewal of its lease returned, 6 R, the number of records; the tag and the record of each; then
--       the tags that have a stub instead
-- Reply 1, or 0 if the owner is already known, in which case nothing was done; or an error:
--       LAPSED the owner has no lease, so no worker would recover its messages, or it returns an old challenge
--
-- The last portion makes the owner known; until then the owner can neither take nor settle. A call that arrives late
-- finds the owner known, and restores nothing.
if redis.call('HEXISTS', KEYS[3], 'next') == 1 then return 0 end
if not redis.call('ZSCORE', KEYS[5], ARGV[1]) or redis.call('HGET', KEYS[3], 'asks') ~= ARGV[5] then
  return redis.error_reply('LAPSED the lease of this worker has ended')
end
-- Call HDEL first, since a server out of memory refuses a script whose first write may need memory.
redis.call('HDEL', KEYS[3], 'next')
local time = redis.call('TIME')
local score = time[1] .. '.' .. string.format('%06d', tonumber(time[2]))
local stubs = 7 + 2 * tonumber(ARGV[6])
for i = 7, stubs - 1, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('ZADD', KEYS[2], score, ARGV[i])
end
-- A tag may have a record from this call, or from a portion before its task ended. In that case it gets no stub: a move
-- would end only one of the two, and a late repetition would find the other.
for i = stubs, #ARGV do
  if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 0 then redis.call('SADD', KEYS[4], ARGV[i]) end
end
redis.call('EXPIRE', KEYS[4], ARGV[4])
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[3], 'next', ARGV[2], 'call', ARGV[3])
  redis.call('EXPIRE', KEYS[3], ARGV[4])
end
return 1
