-- Settles reserved messages: stores and announces results, acknowledges messages or moves them.
--
-- KEYS  unless there are only results: 1 unacked, 2 unacked_index, 3 the owner of the tags: a hash, 4 its begun
--       tags: a set, 5 the leases, and then the goals: the lists and zsets to move to;
--       then one key for each ending that has a result, which is also its channel
-- ARGV  1 N, the number of endings, 2 the number of goals, -1 if there are only results, 3 P, the number of
--       publications, 4 the maximum length of a dead-letter list, 5 who asks: 'own', the owner; 'any', on behalf of
--       no owner; or the score that the owner's ended lease had when it was claimed, 6 the owner's member
--       of the leases;
--       the tag of each ending;
--       for each ending: its head; the encoded state, if it has one; and if it is a move, the number of its goal,
--         what to do there, and the text. What to do is 'next' (RPUSH: taken next), 'last' (LPUSH: taken last),
--         a score (ZADD), or 'dead', bytes, seconds and a time: LPUSH, then drop the oldest letters, that is, those
--         that exceed the maximum length or these bytes of memory, and those buried before that time; the list
--         expires when no letter arrives for these seconds, unless they are 0. An ending with a capital letter is
--         followed by its workflow, see below;
--       for each publication: channel and text;
--       if workflows are indexed, what happens to their tasks: see the end of this script
-- Reply {the reason for a failed publication, or 'INDEX ' and the reason for a failed write of the index, or '', the
--        goal whose key has the wrong type or '' (its messages stay reserved, everything else is done), the
--        dead-letter list that is nearly full or '', the numbers of the endings that were not held …, negative for
--        those whose goal has such a key; if there are workflows, then a list of the numbers of the endings that are
--        withheld, and a list of those whose chord another worker has completed}, or an error:
--        FORGOTTEN the server does not know the owner: it has lost its data; nothing was done
--        LAPSED    the owner's lease is not the one that was claimed; nothing was done
--
-- A head is the letter of the action, the letter of the state's kind or '-' for none, and the seconds until the state
-- expires, 0 for never. Below, actions are compared as bytes. The names are those of settle.py and workflow.py, and are
-- not defined here, because each local here would cost every call.
--   a  97  ACKNOWLEDGE  acknowledge
--   b  98  BEGIN        acknowledge before the run: the record becomes a stub, a member of begun, which the outcome
--                       will belong to
--   e 101  BEGIN_STEP   the same for a message of a workflow: its record also stays, so that whoever recovers it can
--                       fail the tasks that wait for it
--   g 103  REQUEUE      move, unless its owner has acknowledged it early and begun to run it
--   k 107  KEEP         only the state
--   l 108  RUN_ALONE    announce that this message runs alone in its worker; without a tag, that none runs alone now
--   m 109  MOVE         move
--   s      KIND_SUCCESS  a success
--   f      KIND_FINAL    another final state
--   u      KIND_UNRUN    the failure of a message that could not run
--   n      KIND_PASSING  a state that is not final
--
-- An ending acts only if its tag is held, that is, if the record exists or, for the owner, the stub. So a call can be
-- repeated if its reply was lost, and a call that arrives late has no effect. A message that was not held now belongs
-- to another worker, which decides about its state; only a success is still stored, since the work was done, unless a
-- final state exists. A stored success is never replaced. A message without a tag has no record: its final state is
-- stored, while its other states replace no final state. The failure of a message that could not run replaces no final
-- state either, since anyone can send such a message with the id of another task.
--
-- In this script, a workflow is the Continuation of workflow.py: what else happens when a message ends. The letter of
-- the ending's action is then a capital: A, G, K or M (65, 71, 75, 77). It consists of seven lists, each preceded by
-- its length:
--   adds    tasks that join a chord: the group's key, the id, seconds
--   parts   of chords: the group's key, the member, its place, the value, and a rule:
--           z (PARTS_ORDERED: a zset) or l (PARTS_LISTED: a list), how many seconds the chord is kept, a blank,
--           and how many seconds its group is kept
--   states  of other tasks: kind and seconds, and the state; its key is among KEYS, after that of the ending
--   pushes  the number of the goal, 'next' or 'last', the text; or a channel, 'all', the text, which is published
--   seals   chords that begin: the group's key, the size, seconds
--   clears  chords whose body is sent or has failed: the group's key, the claim by the last part, and how many seconds
--           the chord is remembered as done; '' only checks whether it still has to be done
--   frees   chords whose last part has lost its worker: the group's key, and the claim by that part
-- The keys of a chord are its group's with Celery's endings: .j the values, .d the members counted, .s the size, .t
-- the number added to the size, .c the claim, then 'done'; and greenq's own .a, the ids that were added.
--
-- Parts are counted first, each member once. The ending whose part is the last is withheld: its state is stored, but
-- nothing is pushed or acknowledged. Its part claims the chord, so that no Celery worker sends the body as well.
-- The worker then reads the values and settles the message again, with the body to be pushed and the chord to be
-- cleared. If the worker dies before that, the message is still reserved and runs again. Its part has been counted and
-- the claim is its own, so it is withheld again. A chord claimed by another worker is left to that worker.
-- A script that fails halfway is not undone. So the state of each ending is written first: a server out of memory
-- refuses the first write of a script, and a message whose result is not stored is not acknowledged.
-- A user who is allowed to delete but not to push is refused beforehand, if the server can tell (Redis 7 and later).
local count, goals, news = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local asks = ARGV[5]
local unacked, index, owner, begun = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local at, key = 7 + count, goals < 0 and 0 or 5 + goals
local reply, problem = {'', '', ''}, nil
local call = redis.call

if goals >= 0 and asks == 'own' then
  if redis.call('HEXISTS', owner, 'next') == 0 then
    return redis.error_reply('FORGOTTEN the server does not know this worker')
  end
elseif goals >= 0 and asks ~= 'any' and redis.call('ZSCORE', KEYS[5], ARGV[6]) ~= asks then
  return redis.error_reply('LAPSED the owner of these messages is back, or others have recovered them')
end

-- `taken`: the tags whose records were removed in this call. `acks`: the tags whose records are to be removed when it
-- ends. `stubs`: those of `acks` that may also have a stub.
local taken, acks, stubs = {}, {}, {}

-- A refusal must not affect other writes: a user who is not allowed to use channels can still settle messages.
local function publish(channel, text)
  local answer = redis.pcall('PUBLISH', channel, text)
  if type(answer) == 'table' and answer.err then reply[1] = answer.err end
end

-- The channels with subscribers. For a batch, the server is asked for them first, since most results have no
-- subscribers and a PUBLISH costs as much as storing. If this is nil, all results are published.
local listened
if #KEYS - key > 3 and redis.pcall('PUBSUB', 'NUMPAT') == 0 then
  listened = {}
  for first = key + 1, #KEYS, 1000 do
    local counts = redis.pcall('PUBSUB', 'NUMSUB', unpack(KEYS, first, math.min(first + 999, #KEYS)))
    if counts.err then
      listened = nil
      break
    end
    for i = 1, #counts, 2 do listened[counts[i]] = counts[i + 1] > 0 end
  end
end

-- Look for the state at the beginning, where all serializers but one write it. The state of a compressed result, or of
-- one in YAML, cannot be seen; these results are overwritten, as is a key of the wrong type.
local function stored_state(name)
  if redis.call('TYPE', name).ok ~= 'string' then return nil end
  return string.match(redis.call('GETRANGE', name, 0, 63), 'status%W+(%u+)')
end

local function write(name, seconds, payload, ...)
  if seconds == '0' then return call('SET', name, payload, ...) end
  return call('SET', name, payload, 'EX', seconds, ...)
end

local function store(name, kind, seconds, payload, tag, held)
  if not held and kind ~= 's' then return end
  -- Usually no state is stored yet, so one command both checks this and writes the state.
  if not write(name, seconds, payload, 'NX') then
    local state = stored_state(name)
    if state == 'SUCCESS' then return end
    local is_weak = not held or kind == 'u' or (tag == '' and kind == 'n')
    if is_weak and (state == 'FAILURE' or state == 'REVOKED') then return end
    write(name, seconds, payload)
  end
  if not listened or listened[name] then publish(name, payload) end
end

local commands = {next = 'RPUSH', last = 'LPUSH'}
local buried = {}

local function move(tag, is_stub, goal, how, text)
  local is_dead = string.sub(how, 1, 5) == 'dead '
  local push = is_dead and 'LPUSH' or commands[how]
  local kind, wanted = redis.call('TYPE', goal).ok, push and 'list' or 'zset'
  if kind ~= wanted and kind ~= 'none' then
    reply[2] = 'WRONGTYPE ' .. goal .. ' is no ' .. wanted .. ' but a ' .. kind
    return false
  end
  if redis.acl_check_cmd and not (
    redis.acl_check_cmd('ZREM', index, '') and redis.acl_check_cmd(push or 'ZADD', goal, push and '' or '0', '')
  ) then
    problem = redis.error_reply('NOPERM a move needs RPUSH, LPUSH, ZADD and ZREM')
    return false
  end
  -- A message of a workflow that was acknowledged early has both a stub and a record. Neither may remain, or a
  -- repetition would find the message held.
  redis.call('SREM', begun, tag)
  if not is_stub then
    redis.call('HDEL', unacked, tag)
    redis.call('ZREM', index, tag)
    taken[tag] = true
  end
  if push then
    redis.call(push, goal, text)
  else
    redis.call('ZADD', goal, how, text)
  end
  if is_dead then buried[goal] = how end
  return true
end

-- A command that this user is not allowed to run, or that this server lacks, must not stop the script.
local function bound(goal, how)
  local most, bytes, seconds, before = tonumber(ARGV[4]), string.match(how, '^dead (%d+) (%d+) (%S+)$')
  bytes = tonumber(bytes)
  redis.pcall('LTRIM', goal, 0, most - 1)
  if seconds ~= '0' then
    redis.pcall('EXPIRE', goal, seconds)
    for _ = 1, 1000 do
      local oldest = redis.pcall('LINDEX', goal, -1)
      local at = type(oldest) == 'string' and string.match(string.sub(oldest, 1, 8192), '"buried_at": "([^"]+)"')
      if not at or at >= before then break end
      if type(redis.pcall('RPOP', goal)) ~= 'string' then break end
    end
  end
  local function usage() return tonumber(redis.pcall('MEMORY', 'USAGE', goal, 'SAMPLES', 0)) or 0 end
  local takes = usage()
  while takes > bytes do
    local oldest = redis.pcall('RPOP', goal)
    if type(oldest) ~= 'string' then break end
    takes = takes - #oldest
    -- A letter takes more memory than its length.
    if takes <= bytes then takes = usage() end
  end
  local share = math.max(takes / bytes, (tonumber(redis.pcall('LLEN', goal)) or 0) / most)
  if share >= 0.8 then reply[3] = string.format('%s: %d %%', goal, 100 * share) end
end

-- Ask for all endings at once whether they have a record, since calling a command from Lua costs more than running it.
-- HTTL (Redis 7.4, Valkey 9) returns -2 for a missing field, and does not read the values.
local answers = {}
for first = 1, goals < 0 and 0 or count, 1000 do
  local last = math.min(first + 999, count)
  local answer = redis.pcall('HTTL', unacked, 'FIELDS', last - first + 1, unpack(ARGV, 6 + first, 6 + last))
  for i = first, last do
    answers[i] = answer.err and call('HEXISTS', unacked, ARGV[6 + i]) - 2 or answer[i - first + 1]
  end
end

-- Creating functions takes as long as settling a plain task. So the functions that only workflows need are created
-- when a workflow is read. `workflow_functions` extends to the end of finish_workflows, and its body is not indented.
-- It returns a function that reads one workflow, and one that carries out all of them.
local function workflow_functions()

-- The workflows read so far, to be carried out after all parts have been counted.
local endings, withheld, void = {}, {}, {}

-- Most lists are empty; all empty lists share this table.
local none = {}

-- Returns the position of each item of a list; the length comes before the items.
local function positions(size)
  at = at + 1
  if ARGV[at - 1] == '0' then return none end
  local found = {}
  for i = 1, tonumber(ARGV[at - 1]) do
    found[i] = at
    at = at + size
  end
  return found
end

local function read_workflow(ending)
  ending.adds = positions(3)
  ending.parts = positions(5)
  ending.states = positions(2)
  ending.first_key = key
  key = key + #ending.states
  ending.pushes = positions(3)
  ending.seals = positions(3)
  ending.clears = positions(3)
  ending.frees = positions(2)
  endings[#endings + 1] = ending
end

local function claim_of(member) return 'greenq ' .. member end

-- An id is added only once, even if a call is repeated.
local function add_to_chord(name, id, seconds)
  if call('SADD', name .. '.a', id) == 0 then return end
  call('INCR', name .. '.t')
  if seconds ~= '0' then
    call('EXPIRE', name .. '.a', seconds)
    call('EXPIRE', name .. '.t', seconds)
  end
end

-- Collects the parts of all endings by their chords.
local function chords_in_order()
  local chords, order = {}, {}
  for _, ending in ipairs(endings) do
    for _, p in ipairs(ending.held and ending.parts or none) do
      local name = ARGV[p]
      local chord = chords[name]
      if not chord then
        local ordered, seconds, group_seconds = string.match(ARGV[p + 4], '^(%a)(%d+) (%d+)$')
        chord = {
          name = name, ordered = ordered == 'z', seconds = seconds, group_seconds = group_seconds,
          members = {}, values = {}, listed = {}, last = {},
        }
        chords[name] = chord
        order[#order + 1] = chord
      end
      local member = ARGV[p + 1]
      chord.last[#chord.last + 1] = {ending, member}
      if not chord.listed[member] then
        chord.listed[member] = true
        chord.members[#chord.members + 1] = member
        chord.values[#chord.values + 1] = {ARGV[p + 2], ARGV[p + 3]}
      end
    end
  end
  return order
end

-- Adds the members that have not been counted yet.
local function add_parts(chord)
  local name, members = chord.name, chord.members
  for first = 1, #members, 1000 do
    local last = math.min(first + 999, #members)
    local known = call('SMISMEMBER', name .. '.d', unpack(members, first, last))
    local values, new = {}, {}
    for i = first, last do
      if known[i - first + 1] == 0 then
        new[#new + 1] = members[i]
        if chord.ordered then values[#values + 1] = chord.values[i][1] end
        values[#values + 1] = chord.values[i][2]
      end
    end
    if #new > 0 then
      call(chord.ordered and 'ZADD' or 'RPUSH', name .. '.j', unpack(values))
      call('SADD', name .. '.d', unpack(new))
    end
  end
end

local function count_parts(chord)
  local name = chord.name
  local claim = call('GET', name .. '.c')
  if claim == 'done' then return end
  add_parts(chord)
  if chord.seconds ~= '0' then
    for _, ending in ipairs({'.j', '.t', '.s', '.d'}) do call('EXPIRE', name .. ending, chord.seconds) end
  end
  if chord.group_seconds ~= '0' then call('EXPIRE', name, chord.group_seconds) end
  local size = tonumber(call('GET', name .. '.s') or nil)
  if not size then return end
  size = size + (tonumber(call('GET', name .. '.t') or 0) or 0)
  if call(chord.ordered and 'ZCARD' or 'LLEN', name .. '.j') < size then return end
  for i = #chord.last, 1, -1 do
    local ending, own = chord.last[i][1], claim_of(chord.last[i][2])
    if not claim or claim == own then
      write(name .. '.c', chord.seconds, own)
      ending.withheld = true
      return
    end
  end
end

-- Returns whether the goals of an ending can be pushed to.
local function may_push(ending)
  for _, p in ipairs(ending.pushes) do
    local is_list = ARGV[p + 1] ~= 'all'
    local goal = is_list and KEYS[5 + tonumber(ARGV[p])]
    local type = is_list and redis.call('TYPE', goal).ok or 'none'
    if type ~= 'list' and type ~= 'none' then
      reply[2] = 'WRONGTYPE ' .. goal .. ' is no list but a ' .. type
      return false
    elseif is_list and redis.acl_check_cmd and not (
      redis.acl_check_cmd(commands[ARGV[p + 1]], goal, '') and redis.acl_check_cmd('ZREM', index, '')
    ) then
      problem = redis.error_reply('NOPERM what a task sends at its end needs RPUSH, LPUSH and ZREM')
      return false
    end
  end
  return true
end

local function push_all(ending)
  local goal, how, texts
  for _, p in ipairs(ending.pushes) do
    local side = ARGV[p + 1]
    if side == 'all' then
      publish(ARGV[p], ARGV[p + 2])
    else
      local to = KEYS[5 + tonumber(ARGV[p])]
      if texts and (to ~= goal or side ~= how or #texts == 1000) then
        redis.call(commands[how], goal, unpack(texts))
        texts = nil
      end
      goal, how, texts = to, side, texts or {}
      texts[#texts + 1] = ARGV[p + 2]
    end
  end
  if texts then redis.call(commands[how], goal, unpack(texts)) end
end

-- Removes the record, before anything is pushed, so that a repeated ending does not find it.
local function leave(ending)
  local tag = ending.tag
  if ending.what == 109 then -- MOVE
    local at_move = ending.move
    return move(tag, ending.is_stub, KEYS[5 + tonumber(ARGV[at_move])], ARGV[at_move + 1], ARGV[at_move + 2])
  elseif ending.what == 97 and tag ~= '' then -- ACKNOWLEDGE
    if asks == 'own' then redis.call('SREM', begun, tag) end
    taken[tag] = true
    redis.call('HDEL', unacked, tag)
    redis.call('ZREM', index, tag)
  end
  return true
end

local function is_void(ending)
  for _, p in ipairs(ending.clears) do
    local claim = call('GET', ARGV[p] .. '.c')
    -- On a separate results server, chords are cleared last: a chord that is no longer claimed was prepared by a retry.
    local is_last = asks == '' and ARGV[p + 2] ~= ''
    if claim ~= ARGV[p + 1] and (claim or is_last) then return true end
  end
  return false
end

-- Returns whether the only effect of an ending is that its parts have been counted, as for most parts of chords.
local function is_bare(ending)
  return ending.what == 97 and ending.pushes == none and ending.states == none and ending.seals == none -- ACKNOWLEDGE
    and ending.clears == none and ending.frees == none
end

local function finish(ending)
  if is_bare(ending) then
    local tag = ending.tag
    if tag ~= '' and not taken[tag] then
      -- Acknowledge it with the other endings: a repetition may find the record, since a part is counted only once.
      taken[tag] = true
      acks[#acks + 1] = tag
      if asks == 'own' then stubs[#stubs + 1] = tag end
    end
    return
  end
  local is_over = is_void(ending)
  if is_over then void[#void + 1] = ending.number end
  if ending.tag ~= '' and taken[ending.tag] then return end
  if not is_over then
    if not may_push(ending) then
      reply[#reply + 1] = -ending.number
      return
    end
    for i, p in ipairs(ending.states) do
      local rule = ARGV[p]
      store(KEYS[ending.first_key + i], string.sub(rule, 1, 1), string.sub(rule, 2), ARGV[p + 1], '', true)
    end
    for _, p in ipairs(ending.seals) do
      redis.call('DEL', ARGV[p] .. '.c')
      write(ARGV[p] .. '.s', ARGV[p + 2], ARGV[p + 1])
    end
  end
  for _, p in ipairs(ending.frees) do
    if redis.call('GET', ARGV[p] .. '.c') == ARGV[p + 1] then redis.call('DEL', ARGV[p] .. '.c') end
  end
  if not leave(ending) then
    reply[#reply + 1] = -ending.number
    return
  end
  if is_over then return end
  push_all(ending)
  for _, p in ipairs(ending.clears) do
    local name = ARGV[p]
    if ARGV[p + 2] ~= '' then
      redis.call('DEL', name .. '.j', name .. '.t', name .. '.s', name .. '.d', name .. '.a')
      redis.call('SET', name .. '.c', 'done', 'EX', ARGV[p + 2])
    end
  end
end

local function finish_workflows()
  for _, ending in ipairs(endings) do
    for _, p in ipairs(ending.held and ending.adds or none) do add_to_chord(ARGV[p], ARGV[p + 1], ARGV[p + 2]) end
  end
  for _, chord in ipairs(chords_in_order()) do count_parts(chord) end
  for _, ending in ipairs(endings) do
    if ending.held and ending.withheld then
      withheld[#withheld + 1] = ending.number
    elseif ending.held then
      finish(ending)
    end
  end
  reply[#reply + 1] = withheld
  reply[#reply + 1] = void
end

return read_workflow, finish_workflows
end

local read_workflow, finish_workflows

-- Parsed heads are cached: there are few different ones, and parsing one takes as long as a command.
local heads = {}

local function parsed(head)
  local found = {string.byte(head), string.sub(head, 2, 2), string.sub(head, 3)}
  heads[head] = found
  return found
end

for number = 1, count do
  local head, tag = heads[ARGV[at]] or parsed(ARGV[at]), ARGV[6 + number]
  local what, kind = head[1], head[2]
  at = at + 1
  local is_record = answers[number] ~= -2 and tag ~= '' and goals >= 0 and not taken[tag]
  if what == 103 or what == 71 then -- REQUEUE, with a workflow or without
    what = what + 6
    if redis.call('SISMEMBER', begun, tag) == 1 then is_record = false end
  end
  local is_stub = asks == 'own' and not is_record and tag ~= '' and redis.call('SISMEMBER', begun, tag) == 1
  local held = tag == '' or is_record or is_stub
  if not held then reply[#reply + 1] = number end
  if kind ~= '-' then
    key = key + 1
    store(KEYS[key], kind, head[3], ARGV[at], tag, held)
    at = at + 1
  end
  if what < 97 then -- a capital: with a workflow
    local ending = {number = number, tag = tag, what = what + 32, is_stub = is_stub, held = held}
    if ending.what == 109 then -- MOVE
      ending.move = at
      at = at + 3
    end
    if not read_workflow then read_workflow, finish_workflows = workflow_functions() end
    read_workflow(ending)
  elseif what == 109 then -- MOVE
    if held and not move(tag, is_stub, KEYS[5 + tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2]) then
      reply[#reply + 1] = -number
    end
    at = at + 3
  elseif what == 97 then -- ACKNOWLEDGE
    if is_record then
      acks[#acks + 1] = tag
    elseif is_stub then
      redis.call('SREM', begun, tag)
    end
  elseif (what == 98 or what == 101) and is_record then -- BEGIN, BEGIN_STEP
    -- Call SREM first, since a server out of memory refuses a script whose first write may need memory.
    redis.call('SREM', begun, tag)
    redis.call('SADD', begun, tag)
    redis.call('EXPIRE', begun, 604800)
    if what == 98 then -- BEGIN
      redis.call('HDEL', unacked, tag)
      redis.call('ZREM', index, tag)
      taken[tag] = true
    end
  elseif what == 108 and held then -- RUN_ALONE
    redis.call('HDEL', owner, 'alone')
    if tag ~= '' then redis.call('HSET', owner, 'alone', tag) end
  end
end

if finish_workflows then finish_workflows() end

for goal, how in pairs(buried) do bound(goal, how) end

-- Remove the records in portions, because Lua passes at most a few thousand values to one call.
for first = 1, #acks, 1000 do
  local last = math.min(first + 999, #acks)
  redis.call('ZREM', index, unpack(acks, first, last))
  redis.call('HDEL', unacked, unpack(acks, first, last))
end
for first = 1, #stubs, 1000 do redis.call('SREM', begun, unpack(stubs, first, math.min(first + 999, #stubs))) end

-- The index of workflows (off by default). Its ARGV: the list of workflows, and for each workflow the beginning of its
-- keys, its id, how many seconds it is kept, and its number of notes. Each note consists of the number of its ending,
-- the task's id, the letter of its new state, its times, the text of its node, and its message, if that is kept for a
-- retry. A node is its letter, its times, a bar, and its text. A note about an ending that was not held is skipped,
-- as is the failure of a withheld ending, whose second call writes it.
--   p planned, w waiting, r running, y to run again: these states are open; s succeeded, f failed, v revoked
--   F and V the same as f and v for a task that cannot run: they replace no f or v, and its state replaces no final
--           state
--   + and - the sending of a part of the workflow begins and ends: the workflow is open in the meantime
-- Once no node is open, the calls of the workflow are sent. Each is sent once, since the calls are then removed.
if ARGV[at + 2 * news] then
  local function keep_index()
    local most_nodes, most_workflows, most_kept, least_paused = 100000, 10000, 16777216, 2592000
    local lost = {}
    for i = 4, #reply do
      if type(reply[i]) == 'number' then lost[math.abs(reply[i])] = true end
    end
    -- A retry must see the last part of a chord as running until its failure has reached the body.
    local held_back = {}
    for _, number in ipairs(type(reply[#reply]) == 'table' and reply[#reply - 1] or {}) do held_back[number] = true end
    local list, time = ARGV[at + 2 * news], redis.call('TIME')
    local now = time[1] .. '.' .. string.format('%06d', tonumber(time[2]))

    local function may_follow(state, before)
      if state == 'p' then return not before end
      if state == 'w' then return not before or before == 'p' end
      return before ~= 's'
    end

    local function note(name, notes)
      local nodes, seen, written, changes = name .. '.nodes', {}, {}, {}
      local function count(state, by) changes[state] = (changes[state] or 0) + by end
      for first = 1, #notes, 1000 do
        local ids = {}
        for i = first, math.min(first + 999, #notes) do ids[#ids + 1] = ARGV[notes[i] + 1] end
        for i, text in ipairs(redis.call('HMGET', nodes, unpack(ids))) do seen[ids[i]] = text or nil end
      end
      local room = most_nodes - redis.call('HLEN', nodes)
      for _, p in ipairs(notes) do
        local id, state, was = ARGV[p + 1], ARGV[p + 2], seen[ARGV[p + 1]]
        local before = was and string.sub(was, 1, 1)
        local times = ARGV[p + 3]
        if state == 'F' or state == 'V' then
          state = (before == 'f' or before == 'v') and before or string.lower(state)
          if times == '' and was then times = string.match(was, '^.([^|]*)') end
        end
        if state == '+' or state == '-' then
          count('+', state == '+' and 1 or -1)
        elseif may_follow(state, before) and (was or room > 0) then
          if was then count(before, -1) else room = room - 1 end
          count(state, 1)
          local text = was and string.match(was, '|(.*)$') or ''
          if text == '' then text = ARGV[p + 4] end
          seen[id] = state .. times .. '|' .. text
          written[id] = true
          local kept = ARGV[p + 5]
          if kept ~= '' and #kept <= most_kept - tonumber(redis.call('HGET', name, 'kept') or 0) then
            redis.call('HINCRBY', name, 'kept', #kept - redis.call('HSTRLEN', name .. '.failed', id))
            redis.call('HSET', name .. '.failed', id, kept)
          end
        elseif not was then
          redis.call('HINCRBY', name, 'left_out', 1)
        end
      end
      local fields = {}
      for id in pairs(written) do
        fields[#fields + 1] = id
        fields[#fields + 1] = seen[id]
      end
      for first = 1, #fields, 1000 do
        redis.call('HSET', nodes, unpack(fields, first, math.min(first + 999, #fields)))
      end
      for state, by in pairs(changes) do
        if by ~= 0 then redis.call('HINCRBY', name, 'n.' .. state, by) end
      end
    end

    local keys = {'', '.nodes', '.failed', '.held', '.calls'}
    local function begin(name, id, task)
      redis.call('HSET', name, 'since', now, 'task', string.match(task, '^%["([^"]*)"') or '')
      redis.call('ZADD', list, now, id)
      for _ = 1, math.min(10, redis.call('ZCARD', list) - most_workflows) do
        local oldest = redis.call('ZPOPMIN', list)[1]
        local place = string.sub(name, 1, #name - #id) .. oldest
        for _, ending in ipairs(keys) do redis.call('DEL', place .. ending) end
      end
    end

    local function call_all(name, how)
      for _, text in ipairs(redis.call('LRANGE', name .. '.calls', 0, -1)) do
        local when, size, from = string.match(text, '^(%a)(%d+):()')
        if when == 'e' or when == how then
          local sent = redis.pcall('LPUSH', string.sub(text, from, from + size - 1), string.sub(text, from + size))
          if type(sent) == 'table' then redis.call('HSET', name, 'error', sent.err) end
        end
      end
      redis.call('DEL', name .. '.calls')
    end

    -- A worker that has not yet learned that a workflow was resumed or cancelled, or whose call is late, may still put
    -- messages aside. These messages return to their queues.
    local function let_go(name)
      local list = name .. '.held'
      for i = 6, 5 + goals do
        for _ = 1, KEYS[i] == list and 1000 or 0 do
          local item = redis.call('LINDEX', list, 0)
          if not item then break end
          local size, from = string.match(item, '^(%d+):()')
          local sent = redis.pcall('LPUSH', string.sub(item, from, from + size - 1), string.sub(item, from + size))
          if type(sent) == 'table' then break end
          redis.call('LPOP', list)
        end
      end
    end

    local p = at + 2 * news + 1
    while ARGV[p] do
      local name, id, seconds, notes = ARGV[p], ARGV[p + 1], tonumber(ARGV[p + 2]), {}
      local last = p + 4 + 6 * (tonumber(ARGV[p + 3]) - 1)
      for q = p + 4, last, 6 do
        local number, is_failure = tonumber(ARGV[q]), string.find('fvFV', ARGV[q + 2], 1, true)
        if not lost[number] and not (is_failure and held_back[number]) then notes[#notes + 1] = q end
      end
      if #notes > 0 then
        if redis.call('HEXISTS', name, 'since') == 0 then begin(name, id, ARGV[notes[1] + 4]) end
        note(name, notes)
        local seen = redis.call('HMGET', name, 'n.p', 'n.w', 'n.r', 'n.y', 'n.+', 'stop', 'over', 'n.f', 'n.v')
        local still = 0
        for i = 1, 5 do still = still + (tonumber(seen[i] or 0) or 0) end
        if still > 0 and seen[7] then
          redis.call('HDEL', name, 'over')
        elseif still == 0 and not seen[7] then
          redis.call('HSET', name, 'over', now)
          local failed = (tonumber(seen[8] or 0) or 0) + (tonumber(seen[9] or 0) or 0)
          call_all(name, failed == 0 and 's' or 'f')
        end
        if seen[6] == 'paused' then seconds = math.max(seconds, least_paused) else let_go(name) end
        for _, ending in ipairs(keys) do redis.call('EXPIRE', name .. ending, seconds) end
        redis.call('ZREMRANGEBYSCORE', list, '-inf', '(' .. string.format('%.6f', tonumber(now) - least_paused))
        redis.call('EXPIRE', list, math.max(seconds, least_paused))
      end
      p = last + 6
    end
  end

  -- A user who is not allowed to write the index, or a key of the wrong type, must not prevent settling.
  local done, failure = pcall(keep_index)
  if not done then reply[1] = 'INDEX ' .. (type(failure) == 'table' and failure.err or tostring(failure)) end
end

-- Publish last, so that anyone who is notified of an outcome finds it stored.
for i = at, at + 2 * news - 2, 2 do
  publish(ARGV[i], ARGV[i + 1])
end
return problem or reply
