-- Relays messages from lists that no worker is waiting on: idle workers wait only on the first list of a queue.
--
-- KEYS  for each queue its lists, beginning with the first list
-- ARGV  1 the number of lists of a queue
-- Reply how many messages were relayed
--
-- If the first list of a queue is empty, the queue's next message is moved there, and the server gives it to the worker
-- that has waited longest. If that list is not empty, workers are about to take from it and will also check the
-- other lists.
local steps, moved = tonumber(ARGV[1]), 0
for first = 1, #KEYS, steps do
  if redis.call('TYPE', KEYS[first]).ok == 'none' then
    for i = first + 1, first + steps - 1 do
      if redis.call('TYPE', KEYS[i]).ok == 'list' then
        redis.call('LMOVE', KEYS[i], KEYS[first], 'RIGHT', 'RIGHT')
        moved = moved + 1
        break
      end
    end
  end
end
return moved
