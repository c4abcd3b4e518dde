-- Shared head of every script that draws a number for a user: reads the user's state, mints an epoch where rule Epoch
-- asks for it, publishes. A user's state is one hash, so epoch, counter, number and cursor live and expire as one:
--   epoch, run    the epoch, and the process of Redis in which it was minted
--   event         the last durable frame's number: gapless within the epoch
--   first, bytes  the oldest frame that is kept, and what all kept ones weigh
--   number        the last publication's running number
--   cursor        the last durable frame that a device was surely sent
--   began         when the epoch was minted, in milliseconds since the Unix epoch
--   l:<message>   a live text: "<attempt> <seq> <bytes> <conversation>"; the text itself is the string live:<tag>:<message>
-- KEYS 1 state, 2 events. ARGV 1 run id of the connection ('' if Redis is durable), 2 an epoch to mint, 3 tag, 4 channel.
local state_key, events_key = KEYS[1], KEYS[2]
local run, tag, channel = ARGV[1], ARGV[3], ARGV[4]
local STATE_MS = 604800000
local LIVE_MS = 900000
local epoch, event, first, number, bytes

local function live_key(message) return 'live:' .. tag .. ':' .. message end
local function ended_key(message) return 'ended:' .. tag .. ':' .. message end

-- Lua writes integers of more than 14 digits as 1.7e+15 unless told otherwise.
local function text_of(integer) return string.format('%.0f', integer) end

local function mint()
  for _, field in ipairs(redis.call('HKEYS', state_key)) do
    if string.sub(field, 1, 2) == 'l:' then redis.call('DEL', live_key(string.sub(field, 3))) end
  end
  redis.call('DEL', state_key, events_key)
  -- Numbers begin at the time in microseconds, in which nothing is published twice: whoever still counts in the epoch
  -- that is lost sees a gap, never a number that looks old.
  local time = redis.call('TIME')
  epoch, event, first, bytes, number = ARGV[2], 0, 1, 0, math.max(time[1] * 1000000 + time[2], number or 0)
  redis.call('HSET', state_key, 'epoch', epoch, 'run', run, 'event', 0, 'first', 1, 'bytes', 0, 'number', number,
    'began', text_of(time[1] * 1000 + math.floor(time[2] / 1000)))
  redis.call('PEXPIRE', state_key, STATE_MS)
end

-- Reads the state; returns the value of one more field, or false. What it returned is void if an epoch was minted.
local function load_state(field)
  local held = redis.call('HMGET', state_key, 'epoch', 'run', 'event', 'first', 'number', 'bytes', field)
  epoch, event, first = held[1], tonumber(held[3] or nil), tonumber(held[4] or nil)
  number, bytes = tonumber(held[5] or nil), tonumber(held[6] or nil)
  local whole = epoch and event and first and number and bytes
    and (run == '' or held[2] == run)
    and (event == 0 or redis.call('EXISTS', events_key) == 1)
  if whole then return held[7] end
  mint()
  return false
end

-- The same for scripts that only count publications, the most frequent ones: that the stream is missing is noticed by
-- the next script that needs it.
local function load_number(field)
  local held = redis.call('HMGET', state_key, 'run', 'number', field)
  number = tonumber(held[2] or nil)
  if number and (run == '' or held[1] == run) then return held[3] end
  mint()
  return false
end

-- A script writes something before its first publication: see publish.lua.
local function publish(kind, event_id, frame)
  number = number + 1
  redis.call('PUBLISH', channel, text_of(number) .. ' ' .. kind .. ' ' .. event_id .. ' ' .. frame)
end
