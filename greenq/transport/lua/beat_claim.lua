-- Claims due times and sends their messages: a due time counts only if its entry is still where the caller saw it, so
-- of any number of beats one sends it, and a call repeated after a lost answer sends nothing.
--
-- KEYS  1 the states: a hash, 2 the paused entries: a hash, 3 the history: a list, 4… the lists of the messages
-- ARGV  1 how many records the history keeps, then for each entry: its name, its state as the caller saw it, the due
--       time, when it may be sent, the task's id, a channel, how many texts follow, and these: the message as it is for
--       each of the entry's lists, in the order of KEYS, or for the channel. Times are whole microseconds. Without a
--       text the due time is recorded as skipped.
-- Reply {the server's time, then for each entry what became of it and its state}: sent, skipped, changed (another
--       beat was first, or the server lost the entry), early, paused, or the error of a push that was refused
--
-- A state is "<due> <sent> <id> <runs>". It is recorded before the message is pushed, and put back if that is refused:
-- a server without memory refuses the first write of a script, so nothing is pushed that could not be recorded.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local reply, place, sent = {string.format('%.0f', now)}, 4, 0
local any_paused = redis.call('HLEN', KEYS[2]) > 0

-- Publishes a message, or pushes it to its lists, all or none. Returns the refusal, if there is one.
local function push(channel, first, from, count)
  if channel ~= '' then
    local published = redis.pcall('PUBLISH', channel, ARGV[from])
    return type(published) == 'table' and published.err
  end
  for i = 0, count - 1 do
    local pushed = redis.pcall('LPUSH', KEYS[first + i], ARGV[from + i])
    if type(pushed) == 'table' and pushed.err then
      for undone = 0, i - 1 do redis.call('LPOP', KEYS[first + undone]) end
      return pushed.err
    end
  end
end

local i = 2
while i < #ARGV do
  local name, seen, due, ready, id, channel = unpack(ARGV, i, i + 5)
  local texts = tonumber(ARGV[i + 6])
  local state, said = redis.call('HGET', KEYS[1], name) or '', nil
  if state == '' or state ~= seen then
    said = 'changed'
  elseif tonumber(ready) > now or tonumber(due) > now then
    said = 'early'
  elseif any_paused and redis.call('HEXISTS', KEYS[2], name) == 1 then
    said = 'paused'
  else
    local last_due, last_sent, last_id, runs = string.match(state, '^(%d+) (%d+) (%S+) (%d+)$')
    if not last_due or tonumber(last_due) >= tonumber(due) then
      said = 'changed'
    elseif texts == 0 then
      said, state = 'skipped', due .. ' ' .. last_sent .. ' ' .. last_id .. ' ' .. runs
      redis.call('HSET', KEYS[1], name, state)
    else
      local record = due .. ' ' .. reply[1] .. ' ' .. id
      local new = record .. ' ' .. string.format('%.0f', tonumber(runs) + 1)
      redis.call('HSET', KEYS[1], name, new)
      local refusal = push(channel, place, i + 7, texts)
      if refusal then
        redis.call('HSET', KEYS[1], name, state)
        said = refusal
      else
        said, state, sent = 'sent', new, sent + 1
        redis.pcall('LPUSH', KEYS[3], record .. ' ' .. name)
      end
    end
  end
  if channel == '' then place = place + texts end
  i = i + 7 + texts
  reply[#reply + 1] = said
  reply[#reply + 1] = state
end
if sent > 0 then redis.pcall('LTRIM', KEYS[3], 0, tonumber(ARGV[1]) - 1) end
return reply
