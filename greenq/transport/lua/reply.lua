-- Passes a reply to an asker that still waits for it.
--
-- KEYS  1 the bindings of the reply exchange: a set; 2 the asker's list of replies
-- ARGV  1 the asker's binding, 2 the reply, 3 milliseconds after which the list of an asker that died expires,
--       4 the most replies that may wait there
-- Reply 1 if it was pushed, 0 if no asker waits any more, or none reads the replies that are there
if redis.call('SISMEMBER', KEYS[1], ARGV[1]) == 0 then return 0 end
if redis.call('LLEN', KEYS[2]) >= tonumber(ARGV[4]) then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
