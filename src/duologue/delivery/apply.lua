-- Applies durable frames in their order. KEYS 3 applied, 4 the user's messages without outcome. From ARGV 5, for each: key, message, attempt, closing (of an
-- outcome, which ends the live text of its message: a frame to publish before it; else empty), frame. Returns for each its event number, or 0 for a repeat, behind the epoch.
local APPLIED_KEPT = 1024
local APPLIED_SECONDS = 86400
local ENDED_SECONDS = 3600
local MAX_EVENTS = 1000
local MAX_BYTES = 4194304
local applied_key, pending_key = KEYS[3], KEYS[4]
local trimmed = false

-- Marks the text as ended at this attempt or a later one, for repeats too (rule Live text): a worker that woke up late
-- finds it closed. The text of a later attempt, of a regeneration, stays open.
local function end_live(message, attempt)
  local live = redis.call('HGET', state_key, 'l:' .. message)
  local ended = attempt
  if live and tonumber(string.match(live, '^%d+')) <= attempt then
    redis.call('HDEL', state_key, 'l:' .. message)
    redis.call('DEL', live_key(message))
  else -- what is not open at this attempt or before may have ended at a later one
    ended = math.max(attempt, tonumber(redis.call('GET', ended_key(message)) or 0))
  end
  redis.call('SET', ended_key(message), ended, 'EX', ENDED_SECONDS)
end

-- True if the user has not had it. An outcome takes its message's echo with it, so that no echo comes after it.
local function is_new(key, message, ends)
  if redis.call('ZADD', applied_key, 'NX', number, key) == 0 then return false end
  if ends then redis.call('ZADD', applied_key, number, 'e:' .. message) end
  return true
end

local function append(frame)
  event = event + 1
  local event_id = epoch .. ':' .. event
  local whole = '{"event_id":"' .. event_id .. '",' .. string.sub(frame, 2)
  redis.call('XADD', events_key, event .. '-0', 'f', whole)
  bytes = bytes + #whole
  publish('e', event_id, whole)
end

local function trim()
  while event - first >= MAX_EVENTS or (bytes > MAX_BYTES and first < event) do
    local oldest = redis.call('XRANGE', events_key, first, first)[1]
    if oldest then bytes = bytes - #oldest[2][2] end
    first, trimmed = first + 1, true
  end
  if trimmed then redis.call('XTRIM', events_key, 'MINID', first) end
end

-- A script that fails half-way is not undone: what could fail for its data is looked at before anything is written.
for i = 5, #ARGV, 5 do
  if string.sub(ARGV[i + 4], 1, 2) ~= '{"' or not tonumber(ARGV[i + 2]) then
    return redis.error_reply('ERR not a durable frame: ' .. ARGV[i])
  end
end

load_state('run')
local started_at = event
local reply = { epoch }
for i = 5, #ARGV, 5 do
  local message, closing = ARGV[i + 1], ARGV[i + 3]
  local ends = closing ~= ''
  if is_new(ARGV[i], message, ends) then
    if ends then publish('o', '-', closing) end
    append(ARGV[i + 4])
    reply[#reply + 1] = event
  else
    reply[#reply + 1] = 0
  end
  if ends then
    end_live(message, tonumber(ARGV[i + 2]))
    redis.call('ZREM', pending_key, message)
  end
end
if event > started_at then
  trim()
  redis.call('HSET', state_key, 'event', event, 'first', first, 'number', number, 'bytes', bytes)
  redis.call('PEXPIRE', state_key, STATE_MS)
  redis.call('PEXPIRE', events_key, STATE_MS)
  redis.call('ZREMRANGEBYRANK', applied_key, 0, -APPLIED_KEPT - 1)
  redis.call('EXPIRE', applied_key, APPLIED_SECONDS)
end
return reply
