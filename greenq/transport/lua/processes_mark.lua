-- Makes a process of a supervisord group drain, or take messages again, if the caller still leads the group.
--
-- KEYS  1 the leader: a string, 2 the processes that must drain: a set
-- ARGV  1 the caller, 2 the process, 3 '1' to drain, '0' to take again
-- Reply 1 if the caller leads, else 0
--
-- A leader that was suspended must not drain a second process after another process has taken over. A repeated call
-- changes nothing.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call(ARGV[3] == '1' and 'SADD' or 'SREM', KEYS[2], ARGV[2])
redis.call('EXPIRE', KEYS[2], 86400)
return 1
