-- Pushes messages to a queue, all of them or none. Nothing is pushed if more messages would then wait there than the
-- queue's length limit allows.
--
-- KEYS  1 the list to push to, 2… all lists of the queue
-- ARGV  1 the maximum number of messages that may wait, 2… the messages
-- Reply how many messages waited before; -1 minus that number if the new ones were not pushed
local waiting = 0
for i = 2, #KEYS do waiting = waiting + redis.call('LLEN', KEYS[i]) end
if waiting + #ARGV - 1 > tonumber(ARGV[1]) then return -1 - waiting end
for i = 2, #ARGV do redis.call('LPUSH', KEYS[1], ARGV[i]) end
return waiting
