-- Passes a reply to a requester that is still waiting for it.
--
-- KEYS  1 the bindings of the reply exchange: a set; 2 the requester's list of replies
-- ARGV  1 the requester's binding, 2 the reply, 3 milliseconds after which the list of a dead requester expires,
--       4 the maximum number of replies that may wait there
-- Reply 1 if it was pushed, 0 if the requester no longer waits, or does not read its replies
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0 then return 0 end
if redis.call('LLEN', KEYS[2]) >= tonumber(ARGV[4]) then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
