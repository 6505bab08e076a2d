-- Claims due times and sends their messages. A due time is sent only if the state of its entry is still the one that
-- the caller saw. So only one beat sends it, however many run, and a call repeated after a lost reply sends nothing.
--
-- KEYS  1 the states: a hash, 2 the paused entries: a hash, 3 the history: a list, 4… the lists of the messages, each
--       followed by all lists of its queue if that has limits
-- ARGV  1 how many records the history keeps, then for each entry: its name, its state as the caller saw it, the due
--       time, the time at which it may be sent, the task's id, a channel, the number of texts that follow, and these
--       texts. There is one text for each of the entry's lists, in the order of KEYS, or one for the channel; it is the
--       message in the form for that list or channel. Each text is preceded by three limits of its queue: the maximum
--       number of messages that may wait, the milliseconds that it lives without use (0 means no limit), and its number
--       of lists. Times are whole microseconds. If there is no text, the due time is recorded as skipped.
-- Reply {the server's time, then for each entry the outcome and its state}: sent, skipped, changed (another
--       beat was first, or the server lost the entry), early, paused, or the error of a push that was refused
--
-- A state is "<due> <sent> <id> <runs>". The state is recorded before the message is pushed, and restored if the push
-- is refused. A server out of memory refuses the first write of a script, so no message is pushed that could not be
-- recorded.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local reply, place, sent = {string.format('%.0f', now)}, 4, 0
local any_paused = redis.call('HLEN', KEYS[2]) > 0

-- Pushes one message to its list, at `place` in KEYS; its limits and its text begin at `at` in ARGV. Returns the error
-- if the push was refused.
local function push(place, at)
  local most, lives_ms, lists = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  if most > 0 then
    local waiting = 0
    for i = 1, lists do waiting = waiting + redis.call('LLEN', KEYS[place + i]) end
    if waiting >= most then return 'QUEUEFULL ' .. waiting .. ' messages wait, and max_length is ' .. most end
  end
  local pushed = redis.pcall('LPUSH', KEYS[place], ARGV[at + 3])
  if type(pushed) == 'table' and pushed.err then return pushed.err end
  if lives_ms > 0 then
    for i = 1, lists do redis.call('PEXPIRE', KEYS[place + i], lives_ms) end
  end
end

-- Publishes a message, or pushes it to all of its lists or none. Returns the error if the server refused.
local function send(channel, places, from)
  if channel ~= '' then
    local published = redis.pcall('PUBLISH', channel, ARGV[from + 3])
    return type(published) == 'table' and published.err
  end
  for i, place in ipairs(places) do
    local refusal = push(place, from + 4 * (i - 1))
    if refusal then
      for undone = 1, i - 1 do redis.call('LPOP', KEYS[places[undone]]) end
      return refusal
    end
  end
end

local i = 2
while i < #ARGV do
  local name, seen, due, ready, id, channel = unpack(ARGV, i, i + 5)
  local texts, places = tonumber(ARGV[i + 6]), {}
  if channel == '' then
    for each = 1, texts do
      places[each] = place
      place = place + 1 + tonumber(ARGV[i + 4 * each + 5])
    end
  end
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
      local refusal = send(channel, places, i + 7)
      if refusal then
        redis.call('HSET', KEYS[1], name, state)
        said = refusal
      else
        said, state, sent = 'sent', new, sent + 1
        redis.pcall('LPUSH', KEYS[3], record .. ' ' .. name)
      end
    end
  end
  i = i + 7 + 4 * texts
  reply[#reply + 1] = said
  reply[#reply + 1] = state
end
if sent > 0 then redis.pcall('LTRIM', KEYS[3], 0, tonumber(ARGV[1]) - 1) end
return reply
