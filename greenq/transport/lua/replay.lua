-- Puts one dead letter's message back on its queue, or does nothing if the letter has gone.
--
-- KEYS  1 the dead letters, 2 the queue's list
-- ARGV  1 the letter, exactly as stored in the list, 2 the message
-- Reply 1 if it was moved, 0 if it was replayed or purged in the meantime, or an error
--
-- A script that fails halfway is not undone, so the letter is put back if its message is refused (because of a key
-- of the wrong type, or a user who is not allowed to write there).
if redis.call('LREM', KEYS[1], -1, ARGV[1]) == 0 then return 0 end
local pushed = redis.pcall('LPUSH', KEYS[2], ARGV[2])
if type(pushed) == 'table' and pushed.err then
  redis.call('RPUSH', KEYS[1], ARGV[1])
  return pushed
end
return 1
