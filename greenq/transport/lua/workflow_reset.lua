-- Begins a retry: nodes that failed become open again, and their messages are sent again.
--
-- KEYS  1 the workflow, 2 its nodes: a hash, 3 the messages of those that failed: a hash
-- ARGV  the ids of the nodes to reset, each followed by its letter and its times as the caller has seen them
-- Reply how many messages were sent; a node whose queue's key has the wrong type is not changed. -1 if nothing was
--       done, because one of the nodes has failed again in the meantime and its chord has counted that failure
--
-- A node whose message is kept becomes waiting; any other node becomes planned, and is created when the node before it
-- has ended.
local function is_failed(node) return node and string.find('fv', string.sub(node, 1, 1), 1, true) end

for i = 1, #ARGV, 2 do
  local node = redis.call('HGET', KEYS[2], ARGV[i])
  if is_failed(node) and string.match(node, '^[^|]*') ~= ARGV[i + 1] then return -1 end
end
local sent = 0
for i = 1, #ARGV, 2 do
  local id = ARGV[i]
  local node, message = redis.call('HGET', KEYS[2], id), redis.call('HGET', KEYS[3], id)
  if is_failed(node) then
    local state, pushed = string.sub(node, 1, 1), nil
    if message then
      local size, from = string.match(message, '^(%d+):()')
      pushed = redis.pcall('LPUSH', string.sub(message, from, from + size - 1), string.sub(message, from + size))
    end
    if type(pushed) ~= 'table' then
      local now = message and 'w' or 'p'
      redis.call('HSET', KEYS[2], id, now .. string.match(node, '|.*$'))
      redis.call('HINCRBY', KEYS[1], 'n.' .. state, -1)
      redis.call('HINCRBY', KEYS[1], 'n.' .. now, 1)
      redis.call('HDEL', KEYS[1], 'over')
      if message then
        redis.call('HINCRBY', KEYS[1], 'kept', -#message)
        redis.call('HDEL', KEYS[3], id)
        sent = sent + 1
      end
    end
  end
end
return sent
