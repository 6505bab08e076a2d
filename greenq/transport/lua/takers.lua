-- Returns whether, as far as the server knows, any worker takes from a queue. Nothing is written.
--
-- KEYS  1 the leases: a zset, member a worker incarnation, score when its lease ends (unix seconds);
--       2 the bindings of the exchange of commands: a set with a member for each of Celery's workers
-- ARGV  1 the queue, 2 the prefix of an owner's key
-- Reply {how many workers hold a lease, how many of them take from the queue,
--        how many others may take from it: workers that have not reported yet, and Celery's workers,
--        {if no worker takes from it: queues that workers take from, about a hundred at most}}
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local living = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')
local taking, names, seen = 0, {}, {}
local others = redis.call('SCARD', KEYS[2])
for _, member in ipairs(living) do
  local text = redis.call('HGET', ARGV[2] .. string.match(member, '^[^|]*'), 'queues')
  local is_read, queues = pcall(cjson.decode, text or '')
  if is_read and type(queues) == 'table' then
    for _, queue in ipairs(queues) do
      if queue == ARGV[1] then
        taking = taking + 1
        break
      end
      if #names < 300 and not seen[queue] then
        seen[queue] = true
        names[#names + 1] = queue
      end
    end
  else
    others = others + 1
  end
end
return {#living, taking, others, taking == 0 and names or {}}
