-- What a socket needs to go on. ARGV 5 how: 'behind' an event of the client, or at the 'cursor'; 6 epoch and 7 number of
-- that event. Returns epoch, running number at the cut, recovered (1 or 0), the event number before the first frame
-- returned, more (1 if it had too much to return: then no live texts), {event number, frame, …}, {message, state, text, …},
-- and, if there is no cursor to be at, when the epoch began (else 0).
local PART_BYTES = 262144
local CHUNK = 32
local began = 0
local behind = tonumber(load_state('cursor') or nil)
if ARGV[5] == 'behind' then
  behind = ARGV[6] == epoch and tonumber(ARGV[7]) or -1
elseif not behind then
  behind, began = 0, tonumber(redis.call('HGET', state_key, 'began') or 0)
end
local recovered = behind >= first - 1 and behind <= event
if not recovered then behind = first - 1 end

local frames, size, last = {}, 0, behind
while last < event and size < PART_BYTES do
  local chunk = redis.call('XRANGE', events_key, last + 1, '+', 'COUNT', CHUNK)
  if #chunk == 0 then break end
  for _, entry in ipairs(chunk) do
    local frame = entry[2][2]
    if size > 0 and size + #frame > PART_BYTES then
      size = PART_BYTES
      break
    end
    size = size + #frame
    last = tonumber(string.match(entry[1], '^%d+'))
    frames[#frames + 1] = last
    frames[#frames + 1] = frame
  end
end

local more = last < event
local lives = {}
if not more then
  local all = redis.call('HGETALL', state_key)
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 'l:' then
      local message = string.sub(all[i], 3)
      local text = redis.call('GET', live_key(message))
      if text then
        lives[#lives + 1] = message
        lives[#lives + 1] = all[i + 1]
        lives[#lives + 1] = text
      else -- it has expired
        redis.call('HDEL', state_key, all[i])
      end
    end
  end
end
return { epoch, text_of(number), recovered and 1 or 0, behind, more and 1 or 0, frames, lives, began }
